"""Networks as data (``spec``), as a table (``describe``) and as a torch module (``build``)."""
