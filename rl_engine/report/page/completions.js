'use strict';
// Sampled groups → a browser: which problems there are under the filters, one problem's completions side by side, and
// the same problem at other steps.

// Not by colour alone: each verdict has a sign and its name.
const SIGNS = {correct: '✓', incorrect: '✗', no_answer: '∅', unparseable: '?', timeout: '⏱', error: '!'};
const LONG = 400;
const by = id => document.getElementById(id);
const plainVerdict = verdict => verdict.replace('_', ' ');

/** Groups of the chosen run that hold a completion the filters ask for, in the order of steps. */
function matching(groups, {step, verdict, text}) {
  const wanted = text.toLowerCase();
  return groups.filter(group =>
    (step === 'all' || group.step === Number(step)) &&
    (verdict === 'all' || group.completions.some(completion => completion.verdict === verdict)) &&
    (!wanted || [group.problem, group.problem_id, ...group.completions.map(completion => completion.text)]
      .some(part => part.toLowerCase().includes(wanted))));
}

/** Fill the list of problems and the group beside it. `state`: run, step, verdict, text, problem, groupStep. */
function showCompletions(data, state, choose) {
  const {groups, steps_total, groups_total} = data.runs[state.run];
  fillFilters(groups, state);
  const found = matching(groups, state);
  const index = Math.max(0, found.findIndex(group => isChosen(group, state)));
  by('found').textContent = groups.length ? `${found.length} of ${groups.length} groups` : '';
  by('browser').hidden = found.length === 0;
  by('left-out').textContent = leftOut(groups, steps_total, groups_total);
  by('problems').replaceChildren(...found.map((group, place) => listed(group, place === index, choose)));
  by('group-before').disabled = index === 0;
  by('group-after').disabled = index >= found.length - 1;
  by('group-before').onclick = () => choose(found[index - 1]);
  by('group-after').onclick = () => choose(found[index + 1]);
  if (found.length) showGroup(found[index], groups, state, choose);
}

const isChosen = (group, state) => group.problem_id === state.problem && group.step === state.groupStep;

function leftOut(groups, stepsTotal, groupsTotal) {
  if (!stepsTotal) return 'No completions are stored in this run.';
  const steps = new Set(groups.map(group => group.step)).size;
  return `Shown are ${groups.length.toLocaleString('en')} groups from ${steps} of ${stepsTotal.toLocaleString('en')} ` +
    `steps; the steps that were read hold ${groupsTotal.toLocaleString('en')}. Problems that occur at several steps come ` +
    'first, then the digest of the id decides. --problems N shows more.';
}

function fillFilters(groups, state) {
  const steps = [...new Set(groups.map(group => group.step))];
  const verdicts = Object.keys(SIGNS).filter(name => groups.some(group => group.completions.some(c => c.verdict === name)));
  if (!steps.includes(Number(state.step))) state.step = 'all';
  if (!verdicts.includes(state.verdict)) state.verdict = 'all';
  by('step').replaceChildren(new Option('all', 'all'), ...steps.map(step => new Option(step, step)));
  by('verdict').replaceChildren(new Option('all', 'all'), ...verdicts.map(name => new Option(`${SIGNS[name]} ${plainVerdict(name)}`, name)));
  by('step').value = state.step;
  by('verdict').value = state.verdict;
  by('text').value = state.text;
  by('run').value = state.run;
  by('step-before').disabled = state.step === 'all';
  by('step-after').disabled = state.step === String(steps.at(-1)) || !steps.length;
}

/** k/n right, with a sign for each completion. */
function signs(group) {
  const made = element('span', {className: 'signs', title: `${Math.round(group.accuracy * group.samples)} of ${group.samples} right`});
  for (const {verdict} of group.completions) made.append(element('span', {className: verdict, textContent: SIGNS[verdict]}));
  return made;
}

function listed(group, chosen, choose) {
  const button = element('button', {type: 'button', onclick: () => choose(group)},
    element('span', {className: 'where', textContent: `step ${group.step}`}), signs(group),
    element('span', {className: 'what', textContent: group.problem}));
  if (chosen) button.setAttribute('aria-current', 'true');
  return element('li', {}, button);
}

function showGroup(group, groups, state, choose) {
  by('problem-id').textContent = `${group.problem_id}, step ${group.step}`;
  by('problem').textContent = group.problem;
  const right = Math.round(group.accuracy * group.samples);
  const shown = group.completions.filter(({verdict}) => state.verdict === 'all' || verdict === state.verdict);
  by('reference').textContent = `Reference answer ${group.reference} · ${right} of ${group.samples} completions right · ` +
    (shown.length < group.samples ? `${shown.length} shown · ` : '') + `sampled by ${group.completions[0].adapter}`;
  by('prompt').textContent = group.prompt;
  showHistory(group, groups, choose);
  by('cards').classList.toggle('long', shown.some(completion => completion.text.length > LONG));
  by('cards').replaceChildren(...shown.map(card));
}

/** The steps at which the same problem was sampled, to step through. */
function showHistory(group, groups, choose) {
  const same = groups.filter(other => other.problem_id === group.problem_id);
  const place = same.indexOf(group);
  const to = (other, label, title) => element('button', {type: 'button', disabled: !other, title, onclick: () => choose(other)}, label);
  const buttons = same.map(other => {
    const button = to(other, `step ${other.step}: ${Math.round(other.accuracy * other.samples)}/${other.samples}`, 'This problem at this step');
    if (other === group) button.setAttribute('aria-current', 'true');
    return button;
  });
  by('history').replaceChildren(...(same.length === 1 ? [element('span', {className: 'note', textContent: 'Shown at this step only'})] :
    [element('span', {className: 'note', textContent: 'Same problem'}), to(same[place - 1], '◀', 'Earlier step'), ...buttons,
      to(same[place + 1], '▶', 'Later step')]));
}

function card(completion) {
  const {verdict, reward, advantage, tokens, finish_reason, extracted, text} = completion;
  const sign = advantage > 0 ? '+' : advantage < 0 ? '−' : '';
  const fact = (textContent, title = '') => element('span', {textContent, title});
  const answer = extracted === null ? 'no answer' : `answer ${extracted}`;
  return element('div', {className: 'card'},
    element('div', {className: 'head'},
      element('span', {className: `verdict ${verdict}`, textContent: `${SIGNS[verdict]} ${plainVerdict(verdict)}`}),
      element('span', {className: 'answer', textContent: answer, title: answer})),
    element('div', {className: 'head note'},
      fact(`reward ${Number(reward.toFixed(3))}`), fact(`adv. ${sign}${Math.abs(advantage).toFixed(2)}`, 'advantage'),
      fact(`${tokens.toLocaleString('en')} tokens${finish_reason === 'length' ? ', cut off' : ''}`)),
    element('pre', {textContent: text}));
}
