"""Public helpers, one module per subject, under the names they have in Ray."""
