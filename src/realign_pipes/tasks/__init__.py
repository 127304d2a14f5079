"""Where problems come from and how answers are checked. One kind of task a file."""
