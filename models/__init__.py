"""Example networks: functions that build Keras models and import nothing but Keras."""
