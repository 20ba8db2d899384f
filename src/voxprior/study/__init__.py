"""From scores of cells to tables, figures and the report."""
