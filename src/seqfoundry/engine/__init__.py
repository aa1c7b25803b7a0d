"""Run an engine on a user's input, chunk by chunk: on this machine, or on a Spark cluster."""
