"""What a build leaves, from the build itself to its verification, its runs on a user's input and its accuracy."""
