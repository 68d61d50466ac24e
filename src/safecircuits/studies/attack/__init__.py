"""What a defence is worth: arms against attackers who may choose, and what it costs them to break each."""
