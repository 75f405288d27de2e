"""Side-by-side comparisons by a judge: who answers, who judges, and what came of it."""
