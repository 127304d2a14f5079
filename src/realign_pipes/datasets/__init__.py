"""Our own Kedro datasets, for what no published class stores."""
