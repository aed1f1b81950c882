"""What a thief may do to a marked model, or to the questions that it is asked."""
