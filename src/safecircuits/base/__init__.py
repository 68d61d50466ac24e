"""What everything else rests on, and what knows nothing of models: files, progress, statistics, words."""
