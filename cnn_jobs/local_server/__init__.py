"""An MLflow server on this machine, one per directory: what ``make local-run`` and the tests record on.

The directory holds the database, the artifacts, ``server.log`` and ``server.json``, the record of who serves.
MLflow itself is not imported: that takes seconds, and all that is needed here is HTTP and a process.
"""

from cnn_jobs.local_server.process import Server, running_server
from cnn_jobs.local_server.server import start_server, stop_server

__all__ = ["Server", "running_server", "start_server", "stop_server"]
