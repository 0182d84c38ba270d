"""What a run tells: metrics.jsonl, the terminal, pictures/, report.html."""
