"""What is read from files and left in them: text of people, results that are whole or not there, and whose they are."""
