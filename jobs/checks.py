"""System checks: placeholder until the declarations can be judged."""
