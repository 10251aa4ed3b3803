"""What a trained model is used for: `loading.load(path)`, and then fill_mask, embed, classify ...

`loading` has what a pre-trained model can do, `tasks` what a fine-tuned one can.
"""
