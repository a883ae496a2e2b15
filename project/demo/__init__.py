"""The sample shop: an order application that shows what Mainstay does with real work."""
