"""What poolkit has for other libraries; each module needs an extra of its own, and nothing else imports it."""
