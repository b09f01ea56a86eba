"""The phases of a run, a module each: which jobs are missing, what a worker does with one, and what is committed."""
