"""The built wheel, in a project that is not ours."""
