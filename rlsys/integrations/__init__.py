"""A judge as the reward of other libraries: one module per library, which imports it only when it is used.

`groups` joins the responses to one prompt into one judgement; `environment` is the task of judging itself, for training a judge elsewhere.
"""
