"""What every room needs and no room owns: settings, data digests, tracking, plots. Imports no room."""
