"""What the size of the history costs: fills a private database, measures what people and workers do."""
