"""How well defects are found: every part of training and scoring switched off in turn, on image sets of your own."""
