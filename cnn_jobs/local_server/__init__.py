"""An MLflow server on this machine, one per directory, for ``make local-run`` and the tests.

The directory holds the database, the artifacts, ``server.log`` and ``server.json``, which identifies the server.
MLflow itself is not imported, since that takes seconds: HTTP and processes are enough.
"""

from cnn_jobs.local_server.server import Server, running_server, start_server, stop_server

__all__ = ["Server", "running_server", "start_server", "stop_server"]
