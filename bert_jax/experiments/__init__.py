"""Many runs as one: grids, the papers' tables with their published numbers, the disk they take."""
