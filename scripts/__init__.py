"""Programs: absl flags, read once into a frozen config, passed to a function that never reads flags."""
