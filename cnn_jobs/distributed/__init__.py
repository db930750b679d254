"""Several processes that train one run: who they are, how they find each other, and how all of them end."""
