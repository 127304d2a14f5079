"""What every run needs, whatever it computes: work done once, launching processes, the lock, the log, progress bars."""
