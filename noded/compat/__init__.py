"""Programs written for Ray, unmodified: `import ray` means noded.

`import noded.compat.ray` before the first `import ray`, or `noded run --as-ray script.py`, is all it takes. The
names are in `ray/`, how Python finds them in `finder.py`, how workers and child processes come to know in
`environment.py`. Not here: anything that works differently from noded itself, except Ray's names for it.
"""
