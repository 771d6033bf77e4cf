"""What is learned or asked: tasks with their data, and how answers are judged."""
