"""What a defence is worth on the embedded models: ``run`` attacks, ``page`` writes docs/defences.md from that."""
