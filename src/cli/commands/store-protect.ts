/** `cowbell store protect`: keeps a set from any removal until a time. */

import type { Argv } from 'yargs';
import { single } from '../arguments.ts';
import type { CommandContext, GlobalOptions, Run } from '../command.ts';
import { UsageError } from '../exit.ts';
import { addKeyOptions } from '../key-options.ts';
import { openForChange, SET, type SetOptions, STORE } from '../store-options.ts';
import { readUntil } from '../time-arguments.ts';

interface ProtectOptions extends SetOptions {
  readonly until: string | undefined;
  readonly release: boolean;
}

export function addProtect(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'protect <store> <set>',
    'Keep a set from being removed by merge or prune',
    (command) =>
      addKeyOptions(command.positional('store', STORE).positional('set', { ...SET, demandOption: true }))
        .option('until', {
          type: 'string',
          requiresArg: true,
          describe: 'A date or time (UTC), a span from now such as 12h, 30d, 4w or 7y, or forever',
        })
        .option('release', { type: 'boolean', default: false, describe: 'Allow its removal again' })
        .example('$0 store protect /backup/store latest:vol --until 7y', ''),
    (options) => run<ProtectOptions>(options, protect),
  );
}

async function protect(context: CommandContext, options: ProtectOptions): Promise<void> {
  const until = single('--until', options.until);
  if ((until === undefined) !== options.release) {
    throw new UsageError('Protection needs either --until <date, span or forever> or --release');
  }
  const untilMs = until === undefined ? undefined : readUntil('--until', until, context.clock.now());
  const store = await openForChange(context, options);
  const set = await store.find(options.set);
  await store.protect(set.id, untilMs === undefined ? undefined : { untilMs });
  const shown = untilMs === undefined || untilMs === null ? untilMs : new Date(untilMs).toISOString();
  const sentence =
    untilMs === undefined
      ? `Set ${set.id} may be removed again`
      : `Set ${set.id} is protected ${untilMs === null ? 'for ever' : `until ${shown}`}`;
  const protectedUntil = untilMs === null ? 'forever' : (shown ?? null);
  context.output.report({ event: 'protected', set: set.id, protectedUntil }, sentence);
}
