#!/usr/bin/env bash
# Set-up, the main job with default settings on a real model, an evaluation of votes with the trained model, and a results page.
# Arguments override settings: bash launch/quickstart.sh rl.steps=5
set -euo pipefail
bash "$(dirname "$0")/setup.sh"
cd "$(dirname "$0")/.."

run=runs/quickstart
for setting in "$@"; do
    [[ $setting == run.dir=* ]] && run=${setting#run.dir=}
done
.venv/bin/rlsys train launch/configs/quickstart.yaml "$@"

# Votes: held-out rows of the same families, judged up to eight times each.
families=(pick_word include_word avoid_word last_word copy letter_case wrapping kind first_letter opposite plural number_words)
.venv/bin/rlsys data generate --split heldout --seed 1 --count 128 --responses 2 --responses 4 "${families[@]/#/--family=}" \
    --output "$run/vote-rows.jsonl"
.venv/bin/rlsys eval --model "$run" --benchmark "format:rlsys=$run/vote-rows.jsonl" --k 1,2,4,8 --temperature 1 \
    --strategy vote --strategy majority --no-swap --output "$run/votes"
.venv/bin/rlsys report "$run" "$run/votes" --output "$run/page.html"

# What to do with the model.
cat <<END

Serve the model that was trained, and ask it from another terminal:
.venv/bin/rlsys serve --model $run --k 8
curl http://127.0.0.1:8000/v1/score -H 'Content-Type: application/json' -d '{"conversation": "Which one is a tool: whiskey, judo, beige, saw?", "responses": ["whiskey", "saw"]}'
END
