"""What others see of a process: log lines, metrics for Prometheus, the outcome for a Pushgateway."""
