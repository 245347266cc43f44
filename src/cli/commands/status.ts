/** `cowbell status`: what a volume does, asked of its server or read from the volume itself. */

import { findingsOf, reachVolume, type StatusRecord } from '../../daemon/index.ts';
import { absolutePath } from '../arguments.ts';
import type { AddCommand, CommandContext, GlobalOptions } from '../command.ts';
import { NotWellError } from '../exit.ts';
import { describe } from '../output.ts';
import { storeReaderPath } from '../worker-path.ts';

interface Options extends GlobalOptions {
  readonly volume: string;
  readonly check: boolean;
}

export const addStatus: AddCommand = (parser, run) =>
  parser.command(
    'status <volume>',
    'Show the state, the sessions and the counters of a volume, served or not',
    (command) =>
      command
        .positional('volume', { type: 'string', demandOption: true, describe: 'Directory of the volume' })
        .option('check', {
          type: 'boolean',
          default: false,
          describe: 'Say only what is wrong, a line each; exit status 1 where something is (docs/policy.md)',
        })
        .example('$0 status /srv/vol', '')
        .example('$0 status --check /srv/vol', 'For monitoring')
        .example('$0 --json status /srv/vol', 'For a program'),
    (options) => run<Options>(options, showStatus),
  );

async function showStatus(context: CommandContext, options: Options): Promise<void> {
  const directory = absolutePath('The volume', options.volume, context.directory);
  const access = await reachVolume(directory, {
    activity: 'status',
    readOnly: true,
    clock: context.clock,
    readerPath: storeReaderPath(),
  });
  try {
    const result = { served: access.online, ...(await access.status()) };
    if (options.check) check(context, directory, result);
    else context.output.report({ event: 'status', ...result }, ...describe(forPeople(result)));
  } finally {
    await access.close();
  }
}

/** @throws {NotWellError} */
function check({ output, clock }: CommandContext, directory: string, status: StatusRecord): void {
  const findings = findingsOf(status, clock.now());
  for (const { severity, kind, message } of findings)
    output.report(
      { event: 'finding', volume: directory, severity, kind, message },
      `${severity}: ${message}`,
    );
  const problems = findings.filter(({ severity }) => severity === 'problem').length;
  if (problems > 0) throw new NotWellError(directory, problems);
}

/** Of each policy the last outcome alone, which is what people look for; programs get all. */
function forPeople(status: StatusRecord): StatusRecord {
  const { policies } = status;
  if (!Array.isArray(policies)) return status;
  return { ...status, policies: policies.map(withLastOutcome) };
}

function withLastOutcome(policy: unknown): unknown {
  const { outcomes, lastDone, ...rest } = Object.assign({ outcomes: [], lastDone: undefined }, policy);
  const last: unknown = Array.isArray(outcomes) ? outcomes.at(-1) : undefined;
  const { startedMs } = Object.assign({ startedMs: undefined }, lastDone);
  return { ...rest, lastDoneMs: startedMs, last };
}
