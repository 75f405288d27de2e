"""The suite whose optimum is computed by enumeration."""
