"""The long chaos run: a schedule of faults, who carries them out, the load, and who judges what came of it.

In reading order: schedule.py, faults.py, promises.py, load.py and work.py (in drivers), judge.py, run.py.
"""
