"""Sample tasks for the tests: a menu of behaviour and misbehaviour."""
