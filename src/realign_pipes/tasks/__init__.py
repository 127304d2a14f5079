"""Where problems come from and how answers are checked. There is one file per kind of task."""
