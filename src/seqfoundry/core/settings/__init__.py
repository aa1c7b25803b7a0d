"""Settings: YAML 1.2, and a family's frozen `Config` made of it."""
