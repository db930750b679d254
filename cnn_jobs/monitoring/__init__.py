"""What a process exposes: log lines, metrics for Prometheus, the outcome for a Pushgateway."""
