"""What is seen of a process from outside: log lines, metrics for Prometheus, the outcome for a Pushgateway."""
