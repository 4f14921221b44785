"""A language model as judge: what it is asked, who answers, and what the verdicts say."""
