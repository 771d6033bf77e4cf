"""What a flow of events through sources, links and sorting stages costs, and what it keeps (arXiv 2407.00123)."""
