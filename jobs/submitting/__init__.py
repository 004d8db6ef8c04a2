"""A job on somebody's Ray: the dashboard it is handed to, and who follows it until it has ended."""
