export { type Config, ConfigError, readConfigFile } from './read-config.ts';
