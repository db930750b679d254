"""``python -m cnn_jobs``: the same as the ``cnn-jobs`` command."""

from cnn_jobs.cli import main

if __name__ == "__main__":
    main()
