"""A network as data: tables, sizes, parameters, costs. No torch."""
