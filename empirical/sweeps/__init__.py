"""Many runs: grids and lists of settings."""
