#!/usr/bin/env bash
# Set-up, then the main job with its default settings on a real model, votes of the model that it trained, and a page that shows it all.
# Arguments replace settings: bash launch/quickstart.sh rl.steps=5
set -euo pipefail
bash "$(dirname "$0")/setup.sh"
cd "$(dirname "$0")/.."

run=runs/quickstart
for setting in "$@"; do
    [[ $setting == run.dir=* ]] && run=${setting#run.dir=}
done
.venv/bin/rlsys train launch/configs/quickstart.yaml "$@"

# More samples for each row: held-out rows of the same kind, judged up to eight times.
families=(pick_word include_word avoid_word last_word copy letter_case wrapping kind first_letter opposite plural number_words)
.venv/bin/rlsys data generate --split heldout --seed 1 --count 128 --responses 2 --responses 4 "${families[@]/#/--family=}" \
    --output "$run/vote-rows.jsonl"
.venv/bin/rlsys eval --model "$run" --benchmark "format:rlsys=$run/vote-rows.jsonl" --k 1,2,4,8 --temperature 1 \
    --strategy vote --strategy majority --no-swap --output "$run/votes"
.venv/bin/rlsys report "$run" "$run/votes" --output "$run/page.html"
