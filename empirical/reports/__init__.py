"""HTML reports of runs and sweeps, and the comparison of predictions with measurements that they show."""
