"""What a process needs of the machine it runs on: files, locks, signals, its pod. Imports nothing heavy."""
